"""Settings: dataclasses and their checks, YAML and `key=value` merging, schedules, class paths."""
