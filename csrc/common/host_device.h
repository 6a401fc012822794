// SPDX-License-Identifier: Apache-2.0
// What one source needs to be compiled by nvcc, by the host emulation of CUDA, and once per CPU instruction set.
#pragma once

#if defined(__CUDACC__)
#define PYINDEXNET_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PYINDEXNET_HOST_DEVICE inline __attribute__((always_inline))
#endif

// A template that two translation units compile for different instruction sets must not be merged by the linker:
// each set lives in a namespace of its own.
#ifndef PYINDEXNET_ISA
#define PYINDEXNET_ISA generic
#endif
