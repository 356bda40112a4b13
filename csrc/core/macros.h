#pragma once

// Functions marked so compile for the host and, under nvcc, for the device too.
#if defined(__CUDACC__)
#define BEVKD2_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define BEVKD2_HOST_DEVICE inline
#endif
