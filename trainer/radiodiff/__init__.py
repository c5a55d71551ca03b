"""RadioDiff: a latent diffusion model that draws radio maps; it knows nothing about health or loops."""
