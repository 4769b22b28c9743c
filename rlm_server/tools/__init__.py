"""Functions that a run's code may call and that somebody else answers: a client of the tenant's, or the deployment."""
