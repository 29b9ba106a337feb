"""`ray job submit -- python jobs/key.py ...`: the arguments of `medray key`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("key")
