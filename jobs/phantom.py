"""Entry point for `ray job submit -- python jobs/phantom.py ...`; same arguments as `medray phantom`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("phantom")
