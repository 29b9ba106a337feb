"""`ray job submit -- python jobs/prepare.py ...`: the arguments of `medray prepare`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("prepare")
