// The scans on a GPU. Wide arrays: a thread an environment, serial in time, the next steps already being loaded. Narrow
// ones: a block an environment, which composes the affine maps of neighbouring steps. The terms of one step are float32
// (float64 for float64 arrays), the sums over time float64.
#include <type_traits>

#include "core/cuda_floats.h"
#include "core/discount.h"
#include "scans/cuda.h"

namespace fastrl {
inline namespace scans_cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFF;
constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kMaxAlong = 512;  // threads of a block that scans along time

// Fewer environments than this do not fill a GPU one a thread; below that many steps it does not pay to compose them.
constexpr int64_t kWide = 1024, kShort = 64;
// n-step windows up to this length are summed one a thread.
constexpr int64_t kWindow = 64;

__device__ int64_t thread_index() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

__device__ char* at(const ScanArray& x, int64_t t, int64_t n) { return x.data + t * x.row + n * x.column; }

template <class T>
__device__ Real<T> load_item(const ScanArray& x, int64_t t, int64_t n) {
  return to_real(*reinterpret_cast<const T*>(at(x, t, n)));
}

__device__ bool flag(const ScanArray& x, int64_t t, int64_t n) { return *at(x, t, n) != 0; }

// ---------------------------------------------------------------- one step
__device__ bool is_real_step(const ScanData& d, int64_t t, int64_t n) { return !d.mask.data || flag(d.mask, t, n); }

// cont_t, given that step t is real and no episode ends there.
__device__ bool next_counts(const ScanData& d, int64_t t, int64_t n) {
  return t + 1 < d.T && is_real_step(d, t + 1, n) && !(d.cut.data && flag(d.cut, t + 1, n));
}

// An op's parameters outside its own type.
struct Weights {
  double continuation;
  bool bootstraps, continues;  // whether the codes have these bits at all: the factor is not 0
};

template <class R>
struct Step {
  Inputs<R> x;
  int code;
  bool is_real;
};

template <class T, class Op>
__device__ Step<Real<T>> load_step(const Op& op, const Weights& w, const ScanData& d, int64_t t, int64_t n) {
  using R = Real<T>;
  Step<R> s;
  s.x = {load_item<T>(d.in[0], t, n), Op::kInputs > 1 ? load_item<T>(d.in[1], t, n) : R(0),
         Op::kInputs > 2 ? load_item<T>(d.in[2], t, n) : R(0), Op::kInputs > 3 ? load_item<T>(d.in[3], t, n) : R(0)};
  prepare<T>(op, s.x);
  s.code = kBootstraps | kContinues;
  s.is_real = true;
  if constexpr (!std::is_same<Op, AffineScan<R>>::value) {
    const bool terminated = flag(d.terminated, t, n), truncated = flag(d.truncated, t, n);
    s.is_real = is_real_step(d, t, n);
    const bool goes_on = s.is_real && !terminated && !truncated && next_counts(d, t, n);
    s.code = (w.bootstraps && !terminated ? kBootstraps : 0) | (w.continues && goes_on ? kContinues : 0);
  }
  return s;
}

template <class R, class Op>
__device__ Affine<double> coefficients(const Op& op, const Weights& w, const Step<R>& s) {
  const Affine<R> f = op.affine(s.x, s.code);
  if constexpr (Op::kConstant) return {s.code & kContinues ? w.continuation : 0.0, static_cast<double>(f.b)};
  return {static_cast<double>(f.a), static_cast<double>(f.b)};
}

template <class T, class R, class Op>
__device__ void store_step(const Op& op, const ScanData& d, int64_t t, int64_t n, const Step<R>& s, double y,
                           double y_next) {
  const Outputs<R> result = op.finish(s.x, s.code, static_cast<R>(y), static_cast<R>(y_next));
  *reinterpret_cast<T*>(at(d.out[0], t, n)) = from_real<T>(s.is_real ? result.y0 : R(0));
  if (Op::kOutputs > 1) *reinterpret_cast<T*>(at(d.out[1], t, n)) = from_real<T>(s.is_real ? result.y1 : R(0));
}

// y_T.
template <class T>
__device__ double last_of(const ScanData& d, int64_t n) {
  return d.last.data ? static_cast<double>(load_item<T>(d.last, 0, n)) : d.last_value;
}

// ---------------------------------------------------------------- a thread an environment
template <class T, class Op>
__global__ void scan_columns(Op op, Weights w, ScanData d) {
  constexpr int kAhead = sizeof(Real<T>) == 4 ? 8 : 4;  // steps in flight, for the latency of memory
  const int64_t n = thread_index();
  if (n >= d.N) return;
  Step<Real<T>> now[kAhead] = {}, ahead[kAhead] = {};
  double y = last_of<T>(d, n);
#pragma unroll
  for (int u = 0; u < kAhead; ++u)
    if (d.T - 1 - u >= 0) now[u] = load_step<T>(op, w, d, d.T - 1 - u, n);
  for (int64_t t = d.T - 1; t >= 0; t -= kAhead) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u)
      if (t - kAhead - u >= 0) ahead[u] = load_step<T>(op, w, d, t - kAhead - u, n);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (t - u < 0) continue;
      const Affine<double> f = coefficients(op, w, now[u]);
      const double next = y;
      y = f.b + times(f.a, next);
      store_step<T>(op, d, t - u, n, now[u], y, next);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) now[u] = ahead[u];
  }
}

// ---------------------------------------------------------------- a block an environment
// f(y); a = 0 cuts.
__device__ double apply(const Affine<double>& f, double y) { return f.b + times(f.a, y); }

// f after g. `exact` falls where a product that overflowed, underflowed to 0 or is NaN says nothing of what it would
// multiply.
__device__ Affine<double> compose(const Affine<double>& f, const Affine<double>& g, bool& exact) {
  const double a = g.a != 0 ? times(f.a, g.a) : 0.0;
  exact &= a - a == 0 && (a != 0 || f.a == 0 || g.a == 0);
  return {a, apply(f, g.b)};
}

__device__ Affine<double> from_lane_before(const Affine<double>& f, int lanes) {
  return {__shfl_up_sync(kAllLanes, f.a, lanes), __shfl_up_sync(kAllLanes, f.b, lanes)};
}

// Backward in time by tiles of blockDim steps, of which thread 0 has the last one: y of a thread needs those before it.
template <class T, class Op>
__global__ void __launch_bounds__(kMaxAlong) scan_along(Op op, Weights w, ScanData d) {
  __shared__ Affine<double> of_warp[2][kMaxAlong / kWarp], of_step[kMaxAlong];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int threads = static_cast<int>(blockDim.x), warps = threads / kWarp;
  const int64_t n = blockIdx.x;
  double carry = last_of<T>(d, n);  // y of the step after the tile
  Step<Real<T>> now = {}, ahead = {};
  int64_t t = d.T - 1 - thread;
  if (t >= 0) now = load_step<T>(op, w, d, t, n);
  for (int tile = 0; t + thread >= 0; ++tile, t -= threads) {
    if (t - threads >= 0) ahead = load_step<T>(op, w, d, t - threads, n);
    const Affine<double> step = t >= 0 ? coefficients(op, w, now) : Affine<double>{1.0, 0.0};
    Affine<double> all = step;  // the steps of the lanes up to this one
    bool exact = step.a - step.a == 0;
    for (int h = 1; h < kWarp; h *= 2) {
      const Affine<double> before = from_lane_before(all, h);
      if (lane >= h) all = compose(all, before, exact);
    }
    const Affine<double> before = from_lane_before(all, 1);
    Affine<double>* const maps = of_warp[tile % 2];
    if (lane == kWarp - 1) maps[warp] = all;
    double next = carry;
    if (!__syncthreads_or(!exact)) {  // one wait a tile: the next one writes to the other half of of_warp
      for (int i = 0; i < warps; ++i) {
        if (i == warp) next = carry;
        carry = apply(maps[i], carry);
      }
      if (lane > 0) next = apply(before, next);
    } else {  // one step after the other
      of_step[thread] = step;
      __syncthreads();
      for (int i = 0; i < threads; ++i) {
        if (i == thread) next = carry;
        carry = apply(of_step[i], carry);
      }
      __syncthreads();  // the next tile may write to of_step
    }
    if (t >= 0) store_step<T>(op, d, t, n, now, step.b + times(step.a, next), next);
    now = ahead;
  }
}

// ---------------------------------------------------------------- n-step returns
template <class T>
__device__ void store_n_step(const ScanData& d, int64_t t, int64_t n, double returns, double discount, int64_t last) {
  using R = Real<T>;
  *reinterpret_cast<T*>(at(d.out[0], t, n)) = from_real<T>(static_cast<R>(returns));
  *reinterpret_cast<T*>(at(d.out[1], t, n)) = from_real<T>(static_cast<R>(discount));
  *reinterpret_cast<int64_t*>(at(d.out[2], t, n)) = last;
}

// A thread a step: sums the window that begins there. gamma^reach counts as 0.
template <class T>
__global__ void n_step_windows(ScanData d, double gamma, int64_t steps, int64_t reach) {
  const int64_t i = thread_index();
  if (i >= d.T * d.N) return;
  const int64_t t = i / d.N, n = i % d.N;
  if (!is_real_step(d, t, n)) return store_n_step<T>(d, t, n, 0, 0, t);
  double total = 0, factor = 1;
  int64_t last = t;
  bool terminated;
  for (;; ++last) {
    total += times(factor, static_cast<double>(load_item<T>(d.in[0], last, n)));
    factor = last - t + 1 < reach ? factor * gamma : 0.0;
    terminated = flag(d.terminated, last, n);
    if (terminated || last - t + 1 == steps || flag(d.truncated, last, n) || !next_counts(d, last, n)) break;
  }
  const double discount = terminated ? 0.0 : factor;
  if (d.in[1].data && discount != 0) total += discount * static_cast<double>(load_item<T>(d.in[1], last, n));
  store_n_step<T>(d, t, n, total, discount, last);
}

// A thread an environment, backward in time. What reaches the end of its episode within n steps needs only the step
// after it (`tail`). For whole windows time is cut, from its end, into blocks of one window's length; a window is the
// rest of the block that it begins in (`rest`) and the beginning of the next one, which waits where `last` will be
// written.
template <class T>
__global__ void n_step_columns(ScanData d, double gamma, int64_t steps, int64_t reach) {
  const int64_t n = thread_index();
  if (n >= d.N) return;
  const int64_t window = steps < reach ? steps : reach, longest = steps < reach ? steps : reach - 1;
  const auto reward = [&](int64_t t) { return static_cast<double>(load_item<T>(d.in[0], t, n)); };
  const auto next_value = [&](int64_t t) {
    return d.in[1].data ? static_cast<double>(load_item<T>(d.in[1], t, n)) : 0.0;
  };
  const auto ahead = [&](int64_t t) { return reinterpret_cast<double*>(at(d.out[2], t, n)); };
  const double whole_discount = steps < reach ? pow(gamma, static_cast<double>(steps)) : 0.0;
  int64_t run = 0;  // steps to the end of the episode, this one included
  double tail = 0, discount = 0;
  int64_t begin = d.T;                // of the block
  bool ready = false;                 // whether it has been prepared
  double rest = 0, factor_ahead = 0;  // factor_ahead: gamma^(steps to the next block)
  for (int64_t t = d.T - 1; t >= 0; --t) {
    const bool terminated = flag(d.terminated, t, n), truncated = flag(d.truncated, t, n);
    const bool is_real = is_real_step(d, t, n);
    const bool goes_on = is_real && !terminated && !truncated && next_counts(d, t, n);
    const double factor = terminated ? 0.0 : gamma;
    const double value = goes_on ? 0.0 : next_value(t);
    tail = reward(t) + times(factor, goes_on ? tail : value);
    discount = goes_on ? factor * discount : factor;
    run = goes_on ? run + 1 : 1;
    if (t < begin) begin -= window, ready = false;
    if (run > longest && !ready) {
      ready = true;
      rest = 0, factor_ahead = 1;
      for (int64_t s = begin + window - 1; s > t; --s) {
        rest = reward(s) + times(gamma, rest);
        factor_ahead *= gamma;
      }
      double sum = 0, power = 1, before = 0;
      for (int64_t s = begin; s <= t; ++s) {
        const int64_t end = s + window - 1;
        if (s > begin) sum += before * reward(end);
        if (s >= 0) *ahead(s) = sum + times(whole_discount != 0 ? power : 0.0, next_value(end));
        before = power;
        power *= gamma;
      }
    }
    if (ready) {
      rest = reward(t) + times(gamma, rest);
      factor_ahead *= gamma;
    }
    const bool is_whole = run > longest;
    const double returns = is_whole ? rest + times(factor_ahead, *ahead(t)) : tail;
    const int64_t last = t + (run < steps ? run : steps) - 1;
    store_n_step<T>(d, t, n, is_real ? returns : 0.0, is_real ? (is_whole ? whole_discount : discount) : 0.0,
                    is_real ? last : t);
  }
}

// ---------------------------------------------------------------- launches
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t threads, int block, cudaStream_t stream, A... arguments) {
  kernel<<<static_cast<unsigned>((threads + block - 1) / block), block, 0, stream>>>(arguments...);
}

template <class R, template <class> class Op>
Op<R> in_real(const Op<double>& op) {
  if constexpr (std::is_same<R, double>::value)
    return op;
  else
    return op.in_float();
}

// Small blocks where there are few threads: they spread over more processors.
int block_of(int64_t threads) { return threads < 1 << 15 ? kWarp : kThreads; }

}  // namespace scans_cuda

template <template <class> class Op>
cudaError_t cuda_scan(const Op<double>& op, CudaFloat dtype, const ScanData& d, cudaStream_t stream) {
  if (d.T == 0 || d.N == 0) return cudaSuccess;
  const Weights w{op.continuation, op.gamma != 0, op.continuation != 0};
  const bool along = d.T >= kShort && d.N < kWide;
  return typed(dtype, [&](auto item) {
    using T = decltype(item);
    const auto real = in_real<Real<T>>(op);
    if (along) {
      const int64_t block = d.T < kMaxAlong ? (d.T + kWarp - 1) / kWarp * kWarp : kMaxAlong;
      launch(scan_along<T, Op<Real<T>>>, d.N * block, static_cast<int>(block), stream, real, w, d);
    } else {
      launch(scan_columns<T, Op<Real<T>>>, d.N, block_of(d.N), stream, real, w, d);
    }
  });
}

cudaError_t cuda_n_step_returns(const ScanData& d, CudaFloat dtype, double gamma, int64_t n, cudaStream_t stream) {
  if (d.T == 0 || d.N == 0) return cudaSuccess;
  const int64_t steps = n < d.T ? n : d.T;
  return typed(dtype, [&](auto item) {
    using T = decltype(item);
    const int64_t reach = discount_reach(gamma, std::is_same<T, double>::value, steps);
    if (steps > kWindow)
      launch(n_step_columns<T>, d.N, block_of(d.N), stream, d, gamma, steps, reach);
    else
      launch(n_step_windows<T>, d.T * d.N, kThreads, stream, d, gamma, steps, reach);
  });
}

#define FASTRL_SCAN(Op) template cudaError_t cuda_scan<Op>(const Op<double>&, CudaFloat, const ScanData&, cudaStream_t);
FASTRL_SCAN(AffineScan)
FASTRL_SCAN(Gae)
FASTRL_SCAN(LambdaReturns)
FASTRL_SCAN(RewardsToGo)
FASTRL_SCAN(VTrace)
FASTRL_SCAN(OffPolicyReturns)
#undef FASTRL_SCAN

}  // namespace fastrl
