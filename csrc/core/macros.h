#pragma once

// Marks functions that compile for the host and, under nvcc, also for the device.
#if defined(__CUDACC__)
#define BEVKD2_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define BEVKD2_HOST_DEVICE inline
#endif
