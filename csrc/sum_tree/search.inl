// Searching and repairing the tree, for one instruction set: included once for each FASTRL_LEVEL (1: any; 3, 4:
// x86-64-v3, -v4), inside a namespace of its own; FASTRL_TARGET names the set on every function. Every level gives the
// same bits: prefix sums in the order of prefix_sums (sum_tree.h), then the first child that ends beyond u, then u less
// the sum of the children before it.

#if FASTRL_LEVEL == 4

// How many of 16 prefix sums are <= u, or < u.
FASTRL_TARGET FASTRL_INLINE int count_le(__m512d a, __m512d b, double u) {
  const __m512d v = _mm512_set1_pd(u);
  return __builtin_popcount(_mm512_cmp_pd_mask(a, v, _CMP_LE_OQ) | _mm512_cmp_pd_mask(b, v, _CMP_LE_OQ) << 8);
}
FASTRL_TARGET FASTRL_INLINE int count_lt(__m512d a, __m512d b, double u) {
  const __m512d v = _mm512_set1_pd(u);
  return __builtin_popcount(_mm512_cmp_pd_mask(a, v, _CMP_LT_OQ) | _mm512_cmp_pd_mask(b, v, _CMP_LT_OQ) << 8);
}

FASTRL_TARGET FASTRL_INLINE int count_le(const double* p, double u) {
  return count_le(_mm512_load_pd(p), _mm512_load_pd(p + 8), u);
}
FASTRL_TARGET FASTRL_INLINE int count_lt(const double* p, double u) {
  return count_lt(_mm512_load_pd(p), _mm512_load_pd(p + 8), u);
}

FASTRL_TARGET FASTRL_INLINE __m512d load8(const double* p) { return _mm512_load_pd(p); }
FASTRL_TARGET FASTRL_INLINE __m512d load8(const float* p) { return _mm512_cvtps_pd(_mm256_load_ps(p)); }

FASTRL_TARGET FASTRL_INLINE __m512d scan8(__m512d x) {
  x = _mm512_add_pd(x, _mm512_maskz_permutex_pd(0xAA, x, 0x80));  // lanes 1 3 5 7 += 0 2 4 6
  x = _mm512_add_pd(x, _mm512_maskz_permutex_pd(0xCC, x, 0x55));  // lanes 2 3 6 7 += 1 1 5 5
  return _mm512_add_pd(x, _mm512_maskz_permutexvar_pd(0xF0, _mm512_set1_epi64(3), x));
}

FASTRL_TARGET FASTRL_INLINE int find_leaf(__m512d left, __m512d right, double u) {
  const __m512d a = scan8(left);
  const __m512d b = _mm512_add_pd(scan8(right), _mm512_permutexvar_pd(_mm512_set1_epi64(7), a));
  const int k = count_le(a, b, u);
  if (__builtin_expect(k < kFanout, 1)) return k;
  return count_lt(a, b, _mm512_cvtsd_f64(_mm512_permutexvar_pd(_mm512_set1_epi64(7), b)));
}

#define FASTRL_FIND_LEAF(p, u) find_leaf(load8(p), load8((p) + 8), u)

FASTRL_TARGET FASTRL_INLINE double sum16(__m512d a, __m512d b) {
  __m512d x = _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));  // a01 b01 a23 b23 a45 b45 a67 b67
  x = _mm512_add_pd(x, _mm512_permutex_pd(x, 0x4E));                              // a0123 b0123 .. .. a4567 b4567
  const __m128d y = _mm_add_pd(_mm512_castpd512_pd128(x), _mm512_extractf64x2_pd(x, 2));
  return _mm_cvtsd_f64(_mm_add_sd(y, _mm_unpackhi_pd(y, y)));
}
FASTRL_TARGET FASTRL_INLINE double scan16(const double* in, double* out) {
  const __m512d a = scan8(load8(in));
  const __m512d b = _mm512_add_pd(scan8(load8(in + 8)), _mm512_permutexvar_pd(_mm512_set1_epi64(7), a));
  _mm512_store_pd(out, a);
  _mm512_store_pd(out + 8, b);
  return _mm512_cvtsd_f64(_mm512_permutexvar_pd(_mm512_set1_epi64(7), b));
}

#define FASTRL_SUM(p) sum16(load8(p), load8((p) + 8))
#define FASTRL_SCAN(in, out) scan16(in, out)

#elif FASTRL_LEVEL == 3

FASTRL_TARGET FASTRL_INLINE int count(__m256d a, __m256d b, __m256d c, __m256d d) {
  const int ab = _mm256_movemask_pd(a) | _mm256_movemask_pd(b) << 4;
  return __builtin_popcount(ab | _mm256_movemask_pd(c) << 8 | _mm256_movemask_pd(d) << 12);
}
FASTRL_TARGET FASTRL_INLINE int count_le(__m256d a, __m256d b, __m256d c, __m256d d, double u) {
  const __m256d v = _mm256_set1_pd(u);
  return count(_mm256_cmp_pd(a, v, _CMP_LE_OQ), _mm256_cmp_pd(b, v, _CMP_LE_OQ), _mm256_cmp_pd(c, v, _CMP_LE_OQ),
               _mm256_cmp_pd(d, v, _CMP_LE_OQ));
}
FASTRL_TARGET FASTRL_INLINE int count_lt(__m256d a, __m256d b, __m256d c, __m256d d, double u) {
  const __m256d v = _mm256_set1_pd(u);
  return count(_mm256_cmp_pd(a, v, _CMP_LT_OQ), _mm256_cmp_pd(b, v, _CMP_LT_OQ), _mm256_cmp_pd(c, v, _CMP_LT_OQ),
               _mm256_cmp_pd(d, v, _CMP_LT_OQ));
}

FASTRL_TARGET FASTRL_INLINE __m256d load4(const double* p) { return _mm256_load_pd(p); }
FASTRL_TARGET FASTRL_INLINE __m256d load4(const float* p) { return _mm256_cvtps_pd(_mm_load_ps(p)); }

FASTRL_TARGET FASTRL_INLINE int count_le(const double* p, double u) {
  return count_le(load4(p), load4(p + 4), load4(p + 8), load4(p + 12), u);
}
FASTRL_TARGET FASTRL_INLINE int count_lt(const double* p, double u) {
  return count_lt(load4(p), load4(p + 4), load4(p + 8), load4(p + 12), u);
}

FASTRL_TARGET FASTRL_INLINE __m256d scan4(__m256d x) {
  const __m256d zero = _mm256_setzero_pd();
  x = _mm256_add_pd(x, _mm256_unpacklo_pd(zero, x));  // lanes 1 3 += 0 2
  return _mm256_add_pd(x, _mm256_blend_pd(zero, _mm256_permute4x64_pd(x, 0x55), 0xC));
}

FASTRL_TARGET FASTRL_INLINE __m256d last4(__m256d x) { return _mm256_permute4x64_pd(x, 0xFF); }

FASTRL_TARGET FASTRL_INLINE int find_leaf(__m256d a, __m256d b, __m256d c, __m256d d, double u) {
  a = scan4(a), b = scan4(b), c = scan4(c), d = scan4(d);
  b = _mm256_add_pd(b, last4(a));
  d = _mm256_add_pd(d, last4(c));
  c = _mm256_add_pd(c, last4(b));
  d = _mm256_add_pd(d, last4(b));
  const int k = count_le(a, b, c, d, u);
  if (__builtin_expect(k < kFanout, 1)) return k;
  return count_lt(a, b, c, d, _mm256_cvtsd_f64(last4(d)));
}

#define FASTRL_FIND_LEAF(p, u) find_leaf(load4(p), load4((p) + 4), load4((p) + 8), load4((p) + 12), u)

#else  // SSE2, NEON and the rest: the compiler makes of these loops what it can

FASTRL_TARGET FASTRL_INLINE int count_le(const double* p, double u) {
  int k = 0;
  for (int j = 0; j < kFanout; ++j) k += p[j] <= u;
  return k;
}
FASTRL_TARGET FASTRL_INLINE int count_lt(const double* p, double u) {
  int k = 0;
  for (int j = 0; j < kFanout; ++j) k += p[j] < u;
  return k;
}

template <class T>
FASTRL_TARGET FASTRL_INLINE int find_leaf(const T* children, double u) {
  double prefix[kFanout];
  for (int j = 0; j < kFanout; ++j) prefix[j] = children[j];
  prefix_sums(prefix);
  const int k = count_le(prefix, u);
  return k < kFanout ? k : count_lt(prefix, prefix[kFanout - 1]);
}

#define FASTRL_FIND_LEAF(p, u) find_leaf(p, u)

#endif

// The child that holds u, by the stored prefix sums of the 16 children; u becomes what is left of it.
FASTRL_TARGET FASTRL_INLINE int find_child(const double* prefix, double& u) {
  int k = count_le(prefix, u);
  // Rounding can step past the end: then the last child that adds something.
  if (k == kFanout) k = count_lt(prefix, prefix[kFanout - 1]);
  const double before = prefix[k - 1];  // for k = 0 the neighbour's last, not used
  u -= k > 0 ? before : 0.0;
  return k;
}

#ifndef FASTRL_SUM
#define FASTRL_SUM(p) sum_children(p)
#define FASTRL_SCAN(in, out) scan_children(in, out)
#endif

// Recomputes the sums of all ancestors of the leaves in `list`, which is its work space too.
template <class T>
FASTRL_TARGET void repair(const Levels<T>& tree, int64_t* list, int64_t n) {
  bool sorted = false;
  n = parents(list, n, tree.width[1], tree.marks[1], sorted);
  for (int64_t i = 0; i < n; ++i) {
    tree.sums[1][list[i]] = FASTRL_SUM(tree.leaves + list[i] * kFanout);
    tree.stale[list[i] >> 6] |= uint64_t{1} << (list[i] & 63);
    prefetch(tree.prefix[1] + list[i]);
  }
  for (int level = 2; level <= tree.top; ++level) {
    n = parents(list, n, tree.width[level], tree.marks[level], sorted);
    const double* sums = tree.sums[level - 1];
    double* prefix = tree.prefix[level - 1];
    for (int64_t i = 0; i < n; ++i)
      tree.sums[level][list[i]] = FASTRL_SCAN(sums + list[i] * kFanout, prefix + list[i] * kFanout);
  }
}

// Draws go down kInterleave together, level by level, so that their cache misses overlap.
template <class T>
FASTRL_TARGET void find_all(const Levels<T>& tree, double* u, int64_t n, int64_t* out) {
  for (int64_t first = 0; first < n; first += kInterleave) {
    const int64_t last = n - first < kInterleave ? n : first + kInterleave;
    for (int64_t i = first; i < last; ++i) out[i] = 0;
    for (int level = tree.top - 1; level > 0; --level) {
      const double* prefix = tree.prefix[level];
      const char* below = level > 1 ? reinterpret_cast<const char*>(tree.prefix[level - 1])
                                    : reinterpret_cast<const char*>(tree.leaves);
      const int64_t size = level > 1 ? sizeof(double) : sizeof(T);
      for (int64_t i = first; i < last; ++i) {
        const int64_t child = (out[i] + find_child(prefix + out[i], u[i])) * kFanout;
        out[i] = child;
        prefetch(below + child * size);
        prefetch(below + (child + kFanout - 1) * size);
      }
    }
    for (int64_t i = first; i < last; ++i) out[i] += FASTRL_FIND_LEAF(tree.leaves + out[i], u[i]);
  }
}

#undef FASTRL_FIND_LEAF
#undef FASTRL_SUM
#undef FASTRL_SCAN
