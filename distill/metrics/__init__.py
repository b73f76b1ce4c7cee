"""Figures for generated pictures: alignment, Frechet distance, diversity, blur."""
