"""Clipping inside the frameworks people train with: one module per framework, which imports it when it is used."""
