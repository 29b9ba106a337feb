"""Entry point for `ray job submit -- python jobs/info.py ...`; same arguments as `medray info`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("info")
