"""`ray job submit -- python jobs/phantom.py ...`: the arguments of `medray phantom`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("phantom")
