#!/usr/bin/env bash
# The CUDA compiler and static runtime, inside a manylinux_2_28 image: what the CUDA extension of a release wheel needs.
set -euo pipefail
case $(uname -m) in x86_64) arch=x86_64 ;; aarch64) arch=sbsa ;; *) echo "no CUDA for $(uname -m)" >&2; exit 1 ;; esac
dnf install -y dnf-plugins-core
dnf config-manager --add-repo "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/$arch/cuda-rhel8.repo"
dnf install -y cuda-nvcc-13-0 cuda-cudart-devel-13-0
[ -e /usr/local/cuda ] || ln -s /usr/local/cuda-13.0 /usr/local/cuda
/usr/local/cuda/bin/nvcc --version
