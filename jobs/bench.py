"""Entry point for `ray job submit -- python jobs/bench.py ...`; same arguments as `medray bench`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("bench")
