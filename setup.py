import re
from pathlib import Path

from setuptools import setup

version = re.search('__version__ = "(.*)"', Path(__file__).with_name("minicnn").joinpath("__init__.py").read_text())[1]
test = ["pytest>=8", "hypothesis>=6.100", "threadpoolctl>=3.1", "mypy>=1.10"]
experiments = ["matplotlib>=3.9", "tqdm>=4.64", "scikit-learn>=1.5", "threadpoolctl>=3.1", "filelock>=3.12"]

setup(
    name="minicnn",
    version=version,
    description="A small autograd engine in NumPy and CUDA, and the study of a paper on softmax temperature",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=["minicnn", "minicnn.paper", "minicnn.kernels"],
    package_dir={"minicnn.kernels": "kernels"},
    package_data={"minicnn": ["py.typed"], "minicnn.kernels": ["*.cu", "*.cuh", "*.c", "*.h"]},
    install_requires=["numpy>=2"],
    extras_require={
        "cuda12": ["cupy-cuda12x[ctk]>=14"],
        "cuda13": ["cupy-cuda13x[ctk]>=14"],
        "experiments": experiments,
        "test": test + experiments,
        "test-all": test + experiments + ["torch>=2", "onnx==1.17.0"],  # later wheels of onnx carry no node tests
        "benchmark": experiments + ["torch>=2"],
    },
)
