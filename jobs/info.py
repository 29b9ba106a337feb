"""`ray job submit -- python jobs/info.py ...`: the arguments of `medray info`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("info")
