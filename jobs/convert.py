"""`ray job submit -- python jobs/convert.py ...`: the arguments of `medray convert`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("convert")
