"""The seam: the learner as the service sees it, in numpy."""
