"""`ray job submit -- python jobs/bench.py ...`: the arguments of `medray bench`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("bench")
