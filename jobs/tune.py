"""`ray job submit -- python jobs/tune.py ...`: the arguments of `medray tune`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("tune")
