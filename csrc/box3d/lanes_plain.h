// One pair of boxes at a time: lanes_avx2.h in plain C++. Included inside a namespace; see kernels.cpp.

using Lanes = double;
constexpr int kLanes = 1;

inline Lanes load(const double* from) { return *from; }
inline Lanes gather(const double* from, const int32_t* at) { return from[*at]; }
inline void store(double* to, Lanes a) { *to = a; }

// Bit i: lane i.
inline unsigned bits(bool mask) { return mask; }
