"""What every room of Duet shares: adapters, cohort engine, objectives, privacy, records."""
