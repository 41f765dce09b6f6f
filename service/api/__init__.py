"""The process that speaks HTTP: async at the edge, never behind training."""
