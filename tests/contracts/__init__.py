"""What every member of a registry promises, run over all members."""
