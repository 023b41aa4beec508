"""Pure functions of discrete diffusion: schedules, corruption, attention, losses, likelihood."""
