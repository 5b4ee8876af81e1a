"""For installers that still ask for this file; everything is in setup.cfg."""

from setuptools import setup

setup()
