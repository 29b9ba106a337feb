"""`ray job submit -- python jobs/train.py ...`: the arguments of `medray train`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("train")
