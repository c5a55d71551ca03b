"""A trainer that refuses bad steps on the device and goes back to its last valid checkpoint by itself."""
