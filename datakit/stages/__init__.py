"""Stages: what the steps of our recipes do, one module for each stage."""
