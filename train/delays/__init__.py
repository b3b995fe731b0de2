"""Training of spiking networks with learned delays (``dcls_models.spiking``)."""
