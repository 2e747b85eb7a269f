"""Watch a web page with Selenium: every hour, a screenshot and what its notice says.

`SITE_URL` is the address of the page; the browser is Debian's (`apt-get install chromium-driver`).
"""

# /// script
# dependencies = ["selenium>=4.30"]
# ///

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from turnout import current, every, flow, retry, secret, task


@task(pool="process", retry=retry(2, delay="5s"), timeout="2m")
def look() -> tuple[str, bytes]:
    """Return what the notice says, and a screenshot; the browser ends with the worker process."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")  # what Playwright's default is; leave it out where you can
    with webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver")) as browser:
        browser.get(secret("SITE_URL").reveal())
        notice = browser.find_element(By.CSS_SELECTOR, "[role=status]").text
        return notice, browser.get_screenshot_as_png()


@task
def keep(screenshot: bytes) -> str:
    """Attach the screenshot to the run."""
    return current().attach("page.png", screenshot)


@flow(on=every("1h"))
async def notice() -> str:
    """Return what the notice says."""
    said, screenshot = await look.run()
    await keep.run(screenshot)
    return said
