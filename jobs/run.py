"""`ray job submit -- python jobs/run.py ...`: the arguments of `medray run`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("run")
