"""`levit report`: what a stream's model has become, as one page that needs nothing else."""
