"""Random models, random damages, random routes: each outcome is right by an independent check, or refused."""
