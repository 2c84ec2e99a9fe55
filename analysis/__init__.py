"""Reading a router's posterior: numpy on what a run left behind, without torch."""
