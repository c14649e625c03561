"""Diffusion mathematics over tensors: schedules, denoisers, guidance, samplers, losses."""
