"""What pyproject.toml cannot say: klagg runs from its folder, and so is no wheel.

A wheel would put `shared` and `services` on top of everybody's site-packages, and the database beside them. An editable
install, which `make run` does, is the only one.
"""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class NoWheel(bdist_wheel):
    def run(self) -> None:
        raise SystemExit(
            "klagg runs from its folder: clone it, and say `make run` there, or `pip install --editable .`"
        )


setup(cmdclass={"bdist_wheel": NoWheel})
