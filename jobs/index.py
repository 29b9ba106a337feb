"""`ray job submit -- python jobs/index.py ...`: the arguments of `medray index`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("index")
