"""Other machines that run a bundle: an emulated Arm processor, a phone on a cable.  No torch here.

A device starts the small C++ program in ``runner/`` beside the bundle's files and talks to it through pipes,
so that it is an engine like any other and is held to the same gates.
"""
