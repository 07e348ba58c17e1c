"""`shunt bench`: what the relay costs, against programs that do next to nothing, in one run."""
