"""What every op needs; no op is known here."""
