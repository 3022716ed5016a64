// What the bindings of every op need.
#pragma once

#include "binding/checks.h"
#include "binding/contiguous.h"
#include "binding/method.h"
#include "binding/registry.h"
#include "binding/results.h"
#include "binding/scalars.h"
#include "binding/threads.h"
