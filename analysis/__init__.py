"""Reading a router's posterior: numpy and xarray on a run's posterior.nc, without torch."""
