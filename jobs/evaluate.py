"""`ray job submit -- python jobs/evaluate.py ...`: the arguments of `medray evaluate`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("evaluate")
