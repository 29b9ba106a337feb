"""`ray job submit -- python jobs/chaos.py ...`: the arguments of `medray chaos`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("chaos")
