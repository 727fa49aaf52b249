"""Packages of the wheel. The configurations in conf/ are installed as lightning_switchkd/conf/."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lightning_switchkd*"]), "lightning_switchkd.conf"],
    package_dir={"lightning_switchkd.conf": "conf"},
    include_package_data=False,  # exactly these files:
    package_data={"lightning_switchkd": ["py.typed", "demo/models/**/*"], "lightning_switchkd.conf": ["**/*.yaml"]},
)
