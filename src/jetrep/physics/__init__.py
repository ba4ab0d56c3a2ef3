"""Kinematics, clustering, observables and detector response. No input or output, no learning."""
