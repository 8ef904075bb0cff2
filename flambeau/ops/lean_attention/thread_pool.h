// Threads for calls that last microseconds.
#pragma once
#include <dlfcn.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <unistd.h>

namespace flambeau {

// Threads that wait between calls: starting one costs more than attention over a short context.
class ThreadPool {
   public:
    // Runs f in `threads` threads, one of them the caller; returns when all are done. One call at a time.
    void run(int threads, const std::function<void()>& f) {
        if (threads <= 1) return f();
        std::lock_guard<std::mutex> turn(calls);
        {
            std::lock_guard<std::mutex> lock(state);
            for (; started < threads - 1; started++) std::thread([this] { serve(); }).detach();
            job = &f;
            wanted = threads - 1;
            running.store(threads - 1, std::memory_order_relaxed);
        }
        wake.notify_all();
        f();
        // The others end within a tile's time of this one: spin briefly before sleeping.
        for (int spins = 0; spins < 4000 && running.load(std::memory_order_acquire); spins++) pause();
        std::unique_lock<std::mutex> lock(state);
        done.wait(lock, [this] { return running.load(std::memory_order_acquire) == 0; });
    }

   private:
    void serve() {
        std::unique_lock<std::mutex> lock(state);
        for (;;) {
            wake.wait(lock, [this] { return wanted > 0; });
            wanted--;
            const std::function<void()>* f = job;
            lock.unlock();
            (*f)();
            lock.lock();
            if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) done.notify_one();
        }
    }
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    std::mutex calls, state;
    std::condition_variable wake, done;
    const std::function<void()>* job = nullptr;
    int wanted = 0, started = 0;
    std::atomic<int> running{0};
};

// The pool of this process. A fork has none of its parent's threads and gets a pool of its own; none is ever destroyed,
// because its threads wait in it until the process ends.
inline ThreadPool& thread_pool() {
    static std::mutex guard;
    static ThreadPool* pool = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(guard);
    if (owner != getpid()) {
        pool = new ThreadPool;
        owner = getpid();
    }
    return *pool;
}

// Runs f in `threads` threads, one of them the caller; returns when all are done.
//
// PyTorch's OpenMP threads are used where they are there: they spin for a while after each operation of PyTorch, so
// they start at once, and threads of our own would have to share the processors with them. Not in a fork, where GNU's
// OpenMP has lost its threads and would wait for them forever.
inline void run_threads(int threads, const std::function<void()>& f) {
    typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
    static const Parallel parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    static const pid_t loaded_by = getpid();
    if (threads <= 1) return f();
    if (!parallel || getpid() != loaded_by) return thread_pool().run(threads, f);
    parallel([](void* data) { (*static_cast<const std::function<void()>*>(data))(); },
             const_cast<std::function<void()>*>(&f), threads, 0);
}

}  // namespace flambeau
