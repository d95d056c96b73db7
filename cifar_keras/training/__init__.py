"""How a phase is set, scheduled, run and watched."""
