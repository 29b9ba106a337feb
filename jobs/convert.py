"""Entry point for `ray job submit -- python jobs/convert.py ...`; same arguments as `medray convert`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("convert")
