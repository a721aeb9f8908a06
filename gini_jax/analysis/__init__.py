"""Statistics, pictures and reports of runs, and the costs of compiled programs."""
